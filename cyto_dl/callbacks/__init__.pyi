from .checkpointing import AtomicCheckpointIO as AtomicCheckpointIO
from .checkpointing import EmbedConfig as EmbedConfig
from .previews import ImagePreviews as ImagePreviews
from .random_states import RandomStates as RandomStates
