"""How busy the machine is while a training runs: processor, memory, disk, network and GPUs, every ten seconds."""

import logging
from collections.abc import Callable, Mapping

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from cyto_dl.errors import StorageError

# It says on every screen that it begins, that it ends, and that there is no GPU.
logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.WARNING)


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's own monitor, which gives up when the server is away: what it measures is handed on instead.

    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL sets the seconds between two measurements. GPUs need nvidia-ml-py.

    Args:
        put: Receives {"system/cpu_utilization_percentage": ..., ...} and the number of the measurement.
        run_id: A run that goes on continues its numbers.
        tracking_uri: Where the run is.
    """

    def __init__(self, put: Callable[[Mapping[str, float], int], None], *, run_id: str, tracking_uri: str) -> None:
        super().__init__(run_id, resume_logging=True, tracking_uri=tracking_uri)
        self._put = put

    def monitor(self) -> None:
        """Measure until `finish`."""
        while not self._shutdown_event.wait(self.sampling_interval):
            self.collect_metrics()
            values = {f"{self._metrics_prefix}{name}": value for name, value in self.aggregate_metrics().items()}
            for monitor in self.monitors:
                monitor.clear_metrics()
            try:
                self._put(values, self._logging_step)
            except StorageError:  # a refusal, which ends the training at its own next message
                return
            self._logging_step += 1
