"""Step 2: prepared data and an experiment become a trained model."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.image import component


@component
def train(
    dataset: Input[Dataset],
    experiment: str,
    overrides: list[str],
    source_col: str,
    target_cols: list[str],
    spatial_dims: int,
    num_channels: int,
    source_channel: list[int],
    target_channel: list[int],
    model: Output[Model],
    metrics: Output[Metrics],
    start_model: str = "",
    checkpoint_folder: str = "",
    num_nodes: int = 1,
    gpus_per_node: int = 0,
) -> None:
    """Train an experiment on the prepared data, as `python cyto_dl/train.py experiment=... overrides...` does.

    Logs to MLflow when MLFLOW_TRACKING_URI is set.

    Args:
        dataset: Folder from prepare_data.
        experiment: Name of an experiment, e.g. im2im/segmentation.
        overrides: Changes to it in hydra's syntax, e.g. ["trainer=gpu", "trainer.max_epochs=50"].
        source_col: Column that holds the images which the model sees.
        target_cols: Columns that hold what the model learns to predict.
        spatial_dims: 2 for planes, 3 for volumes.
        num_channels: Channels of a source image, of those that are read; 0 leaves what the experiment says.
        source_channel: Channels of the source that are read, counted from 0, in this order; [] leaves it.
        target_channel: Channels of every target that are read; [] leaves it.
        start_model: Bundle, checkpoint or run whose weights the training begins with; "" for random ones.
        checkpoint_folder: s3:// folder in which every run keeps its best and last checkpoint while it trains, under its
            id; a step that is started again goes on from there. "" keeps none.
        num_nodes: More than 1 trains on so many nodes of the cluster, as a TrainJob; outside a cluster in so many
            processes. On a cluster it needs checkpoint_folder.
        gpus_per_node: Of these nodes; 0 trains on processors.

    Returns:
        model: The run's folder: checkpoints, resolved configuration, previews.
        metrics: Last training and validation values.
    """
    from components.cluster.nodes import train_anywhere

    values = train_anywhere(
        dataset.path,
        experiment,
        overrides,
        model_dir=model.path,
        metrics_path=metrics.path,
        checkpoint_folder=checkpoint_folder,
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
        source_col=source_col,
        target_cols=target_cols,
        spatial_dims=spatial_dims,
        num_channels=num_channels,
        source_channel=source_channel,
        target_channel=target_channel,
        start_model=start_model,
    )
    for name, value in values.items():
        metrics.log_metric(name, value)
