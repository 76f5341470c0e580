from .client import Client as Client
from .jobs import RemoteJob as RemoteJob
from .patience import EndpointError as EndpointError
