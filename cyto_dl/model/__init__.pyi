from .gan import GAN as GAN
from .multitask import MultiTaskIm2Im as MultiTaskIm2Im
from .network import TaskNetwork as TaskNetwork
from .tasks import Task as Task
from .tasks import activate as activate
from .tasks import build_tasks as build_tasks
