from .checkpointing import AtomicCheckpointIO as AtomicCheckpointIO
from .checkpointing import EmbedConfig as EmbedConfig
from .epoch_log import EpochLog as EpochLog
from .previews import ImagePreviews as ImagePreviews
from .random_states import RandomStates as RandomStates
