from .client import Client as Client
from .patience import EndpointError as EndpointError
