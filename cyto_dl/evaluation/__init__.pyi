from .evaluate import Evaluation as Evaluation
from .evaluate import NoTargetsError as NoTargetsError
from .evaluate import evaluate as evaluate
from .report import write_report as write_report
from .report import write_unmeasured as write_unmeasured
