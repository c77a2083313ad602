from medcm_cli.patients import dose as dose
from medcm_cli.patients import load_study as load_study
from medcm_cli.patients import predict as predict

__version__: str
