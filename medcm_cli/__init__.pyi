from medcm_cli.dosing import dose as dose
from medcm_cli.fitted import load_study as load_study
from medcm_cli.prediction import predict as predict

__version__: str
