"""From what the operator said to a server: processors, tokens, limits, and how a bundle becomes a model."""

import asyncio
import logging
from pathlib import Path

import torch
from kserve import ModelRepository

from cyto_dl.bundle import load_bundle
from cyto_dl.bundle.engines import engine_of
from cyto_dl.bundle.format import DOCUMENT, is_bundle
from cyto_dl.inference import Predictor
from cyto_dl.processors import num_processors
from cyto_dl.storage import NothingThereError, is_remote
from serving.access import Access, read_tokens
from serving.executor import Executor
from serving.identity import Identity, check_name, identify
from serving.jobs.folder import JobFolder
from serving.jobs.queue import JobQueue
from serving.limits import MIB, Limits
from serving.model import BundleModel
from serving.references.addresses import Addresses, read_prefixes
from serving.server import BundleServer
from serving.settings import Settings

logger = logging.getLogger(__name__)


def build_server(settings: Settings) -> BundleServer:
    """A server without models.

    Raises:
        ConfigError: Tokens cannot be read, or what clients may name is no address.
    """
    torch.set_num_threads(min(torch.get_num_threads(), num_processors()))  # torch counts the machine's
    limits = Limits(
        body_bytes=settings.max_body_mib * MIB,
        message_bytes=settings.max_message_mib * MIB,
        buffered_bytes=settings.max_buffered_mib * MIB,
        voxels=settings.max_voxels,
        timeout_s=settings.timeout_s,
    )
    access = Access(
        read_tokens(settings.token_file) if settings.token_file else (),
        read_tokens(settings.admin_token_file) if settings.admin_token_file else (),
    )
    executor = Executor(max_running=settings.max_running, max_waiting=settings.max_waiting)

    async def load(name: str | None, address: str) -> BundleModel:
        predictor, identity = await asyncio.to_thread(_read, address, settings)
        name = name or check_name(predictor.name)
        model = BundleModel(name, predictor, executor, limits=limits, identity=identity, drift=settings.drift)
        await asyncio.to_thread(model.warm_up)
        return model

    addresses = Addresses(
        read_prefixes(settings.allow_read, option="--allow-read"),
        read_prefixes(settings.allow_write, option="--allow-write"),
    )

    def open_jobs(models: ModelRepository) -> JobQueue:
        folder, keep_s = JobFolder(str(settings.jobs)), 3600 * settings.keep_jobs_h
        return JobQueue(folder, models, limits=limits, addresses=addresses, max_jobs=settings.max_jobs, keep_s=keep_s)

    return BundleServer(
        executor,
        load,
        root=settings.repository,
        limits=limits,
        access=access,
        origins=settings.cors_origin,
        addresses=addresses,
        open_jobs=open_jobs if settings.jobs else None,
    )


def _read(address: str, settings: Settings) -> tuple[Predictor, Identity]:
    if not is_remote(address) and not is_bundle(Path(address)):
        raise NothingThereError(f"{address} is not a bundle: it has no {DOCUMENT}.")
    engine, device = settings.engine, settings.device
    predictor = load_bundle(address, allow=settings.allow_target, engine=engine, device=device)
    return predictor, identify(address, engine=engine_of(predictor.network), device=device)  # what "auto" is
