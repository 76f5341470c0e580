from .logger import MLflowLogger as MLflowLogger
from .logger import log_evaluation as log_evaluation
from .registry import Version as Version
from .registry import download_bundle as download_bundle
from .registry import find_champion as find_champion
from .registry import promote as promote
from .registry import register_bundle as register_bundle
