from .sliding_window import SlidingWindow as SlidingWindow
