from .bench import Bench as Bench
from .exported import Exported as Exported
from .exporters import EXPORTERS as EXPORTERS
from .exporting import export as export
from .shipped import Shipped as Shipped
