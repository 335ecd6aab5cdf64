"""What a run needs, a directory without another run, its trackers, repositories of the Hub, looked at before hours of work."""

from accelerate import Accelerator

from wavtrain.engine import found_by_main
from wavtrain.hub.fetched_runs import found_run
from wavtrain.hub.publishing import repository_of
from wavtrain.hub.repository import is_hub_id
from wavtrain.reporting.trackers import tracker_names
from wavtrain.run_directory import refuse_other_runs
from wavtrain.run_options import RunOptions


def refuse_closed_doors(options: RunOptions, accelerator: Accelerator) -> None:
    """Every process calls this, one looks. With --check_only no repository is made, and the directory may hold a run."""
    if not options.preprocessing_only:
        found_by_main(accelerator, lambda: _look(options))


def _look(options: RunOptions) -> None:
    tracker_names(options.report_to)
    wanted = options.resume_from_checkpoint
    is_on_hub = wanted is not None and is_hub_id(wanted)
    if not options.check_only:
        refuse_other_runs(options.output_dir, None if is_on_hub else wanted, options.overwrite_output_dir)
    if is_on_hub:
        found_run(wanted, options.hub_token)
    if options.push_to_hub:
        repository_of(options).refuse_if_closed(makes=not options.check_only)
