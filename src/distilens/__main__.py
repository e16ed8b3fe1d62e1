from distilens.cli.commands import main

main()
