"""The models of one server: loaded at its start, and loaded and unloaded later by whom the operator allows.

    --bundle NAME=PATH (several)   -> served from the start
    --repository FOLDER            -> POST /v2/repository/models/NAME/load brings FOLDER/NAME

All models share the executor. A model that is unloaded, or replaced by a newer bundle, finishes its requests: they
hold it. Who may load and unload is checked before (`serving.access`).
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from grpc_interceptor.exceptions import FailedPrecondition
from kserve import Model
from kserve.errors import InvalidInput, ModelNotFound
from kserve.model_repository import ModelRepository
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from cyto_dl.errors import CytoDLError
from cyto_dl.storage import NothingThereError
from serving.identity import NAME

logger = logging.getLogger(__name__)

# The name to serve it under (None: its own) and the address of a bundle -> its model, warmed up.
Load = Callable[[str | None, str], Awaitable[Model]]


class Unloadable(FailedPrecondition):
    """The bundle is missing or damaged; the log says how."""

    http_status = 409


class Repository(ModelRepositoryExtension):
    """Loads and unloads models.

    Args:
        models: Those that are served, of KServe.
        load: Makes a model of a bundle.
        root: Folder or s3:// prefix whose bundles may be loaded by name; None: only those of the start, again.
    """

    def __init__(self, models: ModelRepository, load: Load, *, root: str | None = None) -> None:
        super().__init__(models)
        self._load, self._root = load, root
        self._addresses: dict[str, str] = {}
        self._reasons: dict[str, str] = {}  # name -> why it is not served
        self._turn = asyncio.Lock()  # a bundle is as large in memory as all its requests

    async def add(self, name: str | None, address: str) -> None:
        """Load a bundle from where the operator says, and serve it under a name, or its own.

        Raises:
            CytoDLError: It does not load.
        """
        model = await self._load(name, address)
        self._addresses[model.name] = address
        self._reasons.pop(model.name, None)
        self._model_registry.update(model)

    async def load(self, model_name: str) -> dict[str, Any]:
        """Load, or load again, the bundle of a name; what KServe's gRPC side answers from.

        Raises:
            InvalidInput: It is no name.
            ModelNotFound: There is no bundle of this name.
            Unloadable: The bundle does not load; a model that was served under the name goes on.
        """
        if not NAME.fullmatch(model_name):
            raise InvalidInput(f"{model_name!r} is no model's name: letters, digits, '.', '_' and '-' are")
        address = self._addresses.get(model_name) or (self._root and f"{self._root.rstrip('/')}/{model_name}")
        if not address:
            raise ModelNotFound(model_name)
        async with self._turn:
            try:
                await self.add(model_name, address)
            except CytoDLError as error:
                identity = uuid.uuid4().hex[:8]
                logger.error("%s was not loaded (id %s): %s", model_name, identity, error)
                if isinstance(error, NothingThereError) and model_name not in self._addresses:
                    raise ModelNotFound(model_name) from error
                self._reasons[model_name] = f"not loaded (id {identity})"
                raise Unloadable(
                    f"the bundle of '{model_name}' cannot be loaded (id {identity}); the server's log tells why"
                ) from error
        logger.info("model %s is loaded", model_name)
        return {"name": model_name, "load": True}

    async def unload(self, model_name: str) -> dict[str, Any]:
        """Serve a model no longer; its requests finish.

        Raises:
            ModelNotFound: There is none.
        """
        if self._model_registry.get_models().pop(model_name, None) is None:
            raise ModelNotFound(model_name)
        self._reasons[model_name] = "unloaded"
        logger.info("model %s is unloaded", model_name)
        return {"name": model_name, "unload": True}

    async def listed(self) -> list[dict[str, Any]]:
        """Every model that is or was served, as the protocol's repository index lists them."""
        served = {
            name: {"name": name, "version": model.identity.version, "state": "READY" if model.ready else "UNAVAILABLE"}
            for name, model in self._model_registry.get_models().items()
        }
        others = {name: {"name": name, "state": "UNAVAILABLE"} for name in self._reasons if name not in served}
        return [{**each, "reason": self._reasons.get(name, "")} for name, each in {**served, **others}.items()]
