from distilens.cli import main

main()
