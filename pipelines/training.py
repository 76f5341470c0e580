"""From a table of microscope images to a bundle, to the champion in MLflow's registry, and to an endpoint.

check_settings -> prepare_data -> train -> evaluate -> export -> compare --better--> register as champion -> deploy
                       |            |          |          |         ┕------not------> register as challenger
                    dataset       model     report,    bundle
                                            images
finish, at the end of every run, also of one that failed: says how it ended
"""

from kfp import dsl

from components.check_settings import check_settings
from components.compare import compare
from components.deploy import deploy
from components.evaluate import evaluate
from components.export import export
from components.finish import finish
from components.prepare_data import prepare_data
from components.register import register
from components.train import train
from pipelines import resources


@dsl.pipeline(name="cyto-dl-training", display_name="CytoDL training", pipeline_config=resources.LIFETIME)
def training(
    manifest: str,
    source_col: str = "raw",
    target_cols: list[str] = ["nuclei"],
    experiment: str = "im2im/segmentation",
    overrides: list[str] = [],
    start_model: str = "",
    checkpoint_folder: str = "",
    num_nodes: int = 1,
    gpus_per_node: int = 0,
    spatial_dims: int = 2,
    num_channels: int = 1,
    source_channel: list[int] = [],
    target_channel: list[int] = [],
    split_column: str = "split",
    group_column: str = "",
    stratify_column: str = "",
    fractions: list[float] = [0.7, 0.15, 0.15],
    seed: int = 0,
    evaluation_split: str = "test",
    model_name: str = "",
    comparison_metric: str = "",
    comparison_manifest: str = "",
    minimal_gain: float = 0.0,
    deploy_target: str = "",
    canary_percent: int = 100,
    deploy_timeout_s: int = 900,
) -> None:
    """Train a model on a table of microscope images, measure it, export a bundle, and promote it if it is better.

    Args:
        manifest: A .csv or .parquet with one row per image, or a folder of train.csv, valid.csv and test.csv; local
            or s3://.
        source_col: Column that holds the images which the model sees.
        target_cols: Columns that hold what the model learns to predict; none where a training makes its own.
        experiment: Name of an experiment, e.g. im2im/segmentation, im2im/labelfree, im2im/multitask.
        overrides: Changes to the experiment in hydra's syntax, e.g. ["trainer=gpu", "trainer.max_epochs=50"].
        start_model: Bundle, checkpoint or run whose weights the training begins with (fine-tuning), local or s3://; ""
            to begin with random ones. Its backbone has to be that of the experiment.
        checkpoint_folder: s3:// folder in which every run keeps its best and last checkpoint while it trains, under its
            id, so that a lost node costs an epoch at most; "" for none. Training on several nodes needs it.
        num_nodes: More than 1 trains on so many nodes of the cluster, as a TrainJob of Kubeflow Trainer; on one machine
            in so many processes.
        gpus_per_node: Of these nodes; 0 trains on processors. The step itself only waits: compile without --gpus.
        spatial_dims: 2 for planes, 3 for volumes.
        num_channels: Channels of a source image, of those that are read; 0 accepts what the images have and leaves what
            the experiment says.
        source_channel: Channels of the source that are read, counted from 0, in this order; [] for all.
        target_channel: Channels of every target that are read, where the experiment has a target_channel; [] for all.
        split_column: Column that says train, valid, test or predict; made where it does not exist.
        group_column: Rows that share a value in this column stay in one split, e.g. a donor or a plate; "" for none.
        stratify_column: Splits that are made get their share of the rows of each value here, e.g. a treatment; "" for
            none.
        fractions: Shares of train, valid and test where splits are made.
        seed: Makes the same splits again.
        evaluation_split: Split that the report, the bundle's metrics and the comparison are about.
        model_name: Name in MLflow's registry; the model becomes its champion if it is better than the one before. "" to
            register nothing.
        comparison_metric: Metric that decides, <split>/<head>/<metric>, e.g. test/seg/dice; "" for the first that the
            model has.
        comparison_manifest: Table of the images that candidate and champion are compared on, the same for every run; ""
            for those of the split evaluation_split of this run, which another manifest changes.
        minimal_gain: That the lower 95 % bound of the gain has to pass, in the metric's unit.
        deploy_target: namespace/name of the InferenceService that serves a better model; "" for none. Needs model_name.
        canary_percent: Share of the requests that the new model gets there, 1 to 100.
        deploy_timeout_s: Seconds until it has to be ready; else the former model is served again.
    """
    finished = finish().set_display_name("Finish")
    resources.once(finished)
    with dsl.ExitHandler(finished, name="all-steps"):
        checked = check_settings(
            experiment=experiment,
            overrides=overrides,
            source_col=source_col,
            target_cols=target_cols,
            spatial_dims=spatial_dims,
            evaluation_split=evaluation_split,
            model_name=model_name,
            comparison_metric=comparison_metric,
            comparison_manifest=comparison_manifest,
            minimal_gain=minimal_gain,
            deploy_target=deploy_target,
            canary_percent=canary_percent,
            deploy_timeout_s=deploy_timeout_s,
        ).set_display_name("Check settings")
        checked.set_caching_options(False)  # what it looks at is not in the key
        resources.try_again(resources.small(checked), times=2)

        prepared = prepare_data(
            manifest=manifest,
            source_col=source_col,
            target_cols=target_cols,
            spatial_dims=spatial_dims,
            num_channels=num_channels,
            source_channel=source_channel,
            target_channel=target_channel,
            split_column=split_column,
            group_column=group_column,
            stratify_column=stratify_column,
            fractions=fractions,
            seed=seed,
            evaluation_split=evaluation_split,
        ).set_display_name("Prepare data")
        # The key of KFP's cache is the manifest's address, not its content: a cached step would miss a changed table.
        prepared.set_caching_options(False)
        resources.try_again(resources.small(prepared), times=2).after(checked)

        trained = train(
            dataset=prepared.outputs["dataset"],
            experiment=experiment,
            overrides=overrides,
            source_col=source_col,
            target_cols=target_cols,
            spatial_dims=spatial_dims,
            num_channels=num_channels,
            source_channel=source_channel,
            target_channel=target_channel,
            start_model=start_model,
            checkpoint_folder=checkpoint_folder,
            num_nodes=num_nodes,
            gpus_per_node=gpus_per_node,
        ).set_display_name("Train")
        resources.try_again(resources.large(trained), times=2)
        with dsl.If(start_model != "", name="with-start-model"):
            # For the graph and the lineage. The step reads the address itself, with its own credentials: an imported
            # artifact would be downloaded by Kubeflow's launcher, with Kubeflow's, and cannot be left out.
            dsl.importer(artifact_uri=start_model, artifact_class=dsl.Model).set_display_name("Start model")

        evaluated = evaluate(
            dataset=prepared.outputs["dataset"],
            model=trained.outputs["model"],
            split=evaluation_split,
        ).set_display_name("Evaluate")
        resources.try_again(resources.large(evaluated), times=1)

        exported = export(
            dataset=prepared.outputs["dataset"],
            model=trained.outputs["model"],
            metrics=evaluated.outputs["metrics"],
        ).set_display_name("Export")
        resources.try_again(resources.small(exported), times=1)

        with dsl.If(model_name != "", name="with-model-name"):
            compared = compare(
                dataset=prepared.outputs["dataset"],
                model=trained.outputs["model"],
                images=evaluated.outputs["images"],
                model_name=model_name,
                metric=comparison_metric,
                frozen_manifest=comparison_manifest,
                split=evaluation_split,
                minimal_gain=minimal_gain,
            ).set_display_name("Compare")
            compared.set_caching_options(False)  # another champion gives another answer
            resources.try_again(resources.large(compared), times=1)
            # The condition has to be of the returned value, whose key is "Output": of any
            # other, the local runner takes it for false without a word.
            with dsl.If(compared.outputs["Output"] == True, name="better"):  # noqa: E712
                promoted = register(bundle=exported.outputs["bundle"], model_name=model_name, champion=True)
                resources.once(promoted.set_display_name("Register as champion"))
                with dsl.If(deploy_target != "", name="with-deploy-target"):
                    deployed = deploy(
                        bundle=exported.outputs["bundle"],
                        target=deploy_target,
                        canary_percent=canary_percent,
                        timeout_s=deploy_timeout_s,
                    ).set_display_name("Deploy")
                    # no second attempt: one that failed has brought the former model back, and would fail again
                    resources.small(deployed).set_caching_options(False).after(promoted)
            with dsl.Else(name="not-better"):
                registered = register(bundle=exported.outputs["bundle"], model_name=model_name, champion=False)
                resources.once(registered.set_display_name("Register"))
