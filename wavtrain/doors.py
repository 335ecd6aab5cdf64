"""What a run needs of others, its trackers and repositories of the Hub, looked at before hours of work."""

from accelerate import Accelerator

from wavtrain.engine import found_by_main
from wavtrain.hub.fetched_runs import found_run
from wavtrain.hub.publishing import repository_of
from wavtrain.hub.repository import is_hub_id
from wavtrain.reporting.trackers import tracker_names
from wavtrain.run_options import RunOptions


def refuse_closed_doors(options: RunOptions, accelerator: Accelerator) -> None:
    """Every process calls this, one looks. With --check_only no repository is made."""
    if not options.preprocessing_only:
        found_by_main(accelerator, lambda: _look(options))


def _look(options: RunOptions) -> None:
    tracker_names(options.report_to)
    if options.resume_from_checkpoint and is_hub_id(options.resume_from_checkpoint):
        found_run(options.resume_from_checkpoint, options.hub_token)
    if options.push_to_hub:
        repository_of(options).refuse_if_closed(makes=not options.check_only)
