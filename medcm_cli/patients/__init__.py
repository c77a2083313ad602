"""A fitted study used on patients: their posteriors, predictions and doses, and how good these are."""

from medcm_cli.patients.dosing import dose
from medcm_cli.patients.prediction import predict
from medcm_cli.patients.results import Dosing, Prediction
from medcm_cli.patients.study import Study, load_study

__all__ = ["Dosing", "Prediction", "Study", "dose", "load_study", "predict"]
