from .batch import predict_images as predict_images
from .predictor import InputSpec as InputSpec
from .predictor import Prediction as Prediction
from .predictor import Predictor as Predictor
from .sliding_window import SlidingWindow as SlidingWindow
