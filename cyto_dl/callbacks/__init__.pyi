from .checkpointing import AtomicCheckpointIO as AtomicCheckpointIO
from .checkpointing import EmbedConfig as EmbedConfig
from .checkpointing import SaveOnSigterm as SaveOnSigterm
from .epoch_log import EpochLog as EpochLog
from .monitors import CheckMonitors as CheckMonitors
from .monitors import check_monitors as check_monitors
from .previews import ImagePreviews as ImagePreviews
from .random_states import RandomStates as RandomStates
