from .bench import Bench as Bench
from .exporters import EXPORTERS as EXPORTERS
from .exporting import Exported as Exported
from .exporting import export as export
from .shipped import Shipped as Shipped
