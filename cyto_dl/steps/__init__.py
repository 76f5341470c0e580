"""What each step of a pipeline does with the paths of its artifacts; an orchestrator's component is one call to it.

    what a run asks for -> check_step, check_sweep_step
    manifest -> prepare_step -> dataset_dir -> train_step -> model_dir -> evaluate_step -> report, metrics, images
                                                                       -> export_step   -> bundle_dir
    images, champion -> compare_step -> better?      bundle_dir -> register_step -> version in MLflow's registry
    metrics of several models -> choose_step         however a run ends -> finish_step -> page, tags

    manifest, bundle -> plan_step -> shards -> predict_step -> collect_step -> one table of predictions

A step's metrics are returned, and written as JSON too: KFP's cache takes only artifacts that exist as files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
