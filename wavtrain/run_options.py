"""The flags of every run in its output directory, and which flags a resumed run may change."""

from dataclasses import dataclass

OF_THE_MACHINE = {  # that a run is on: of no use to others, who are given the rest of its arguments
    "output_dir", "cache_dir", "trust_remote_code", "preprocessing_num_workers", "preprocessing_only", "overwrite_cache",
    "train_cache_file_name", "validation_cache_file_name", "dataloader_num_workers", "report_to", "run_name",
    "tracker_project", "tracker_tags", "push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_strategy"}
CHANGES_NO_NUMBER = OF_THE_MACHINE | {
    "gradient_checkpointing", "torch_compile", "max_skipped_in_a_row", "logging_steps", "save_total_limit", "on_collapse",
    "license"}
FREE_TO_CHANGE = CHANGES_NO_NUMBER | {  # by a resumed run: the others are compared by what they lead to
    "dataset_name", "dataset_config_names", "dataset_split_names", "validation_split_names", "audio_column_name",
    "text_column_name", "speaker_column_name", "language_column_name", "id_column_name", "audio_root", "streaming",
    "min_duration_in_seconds", "max_duration_in_seconds", "long_audio", "validation_split_percentage", "init_from",
    "model_name_or_path", "config_name", "gradient_accumulation_steps", "num_train_epochs", "max_train_steps",
    "saving_steps", "eval_steps"}


@dataclass(frozen=True)
class RunOptions:
    """The fields are flags of the same names."""

    output_dir: str
    overwrite_output_dir: bool = False
    preprocessing_only: bool = False
    check_only: bool = False
    resume_from_checkpoint: str | None = None
    save_total_limit: int = 2
    report_to: tuple[str, ...] | None = None
    run_name: str | None = None
    tracker_project: str | None = None
    tracker_tags: tuple[str, ...] = ()
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = None
    hub_private_repo: bool = False
    hub_strategy: str = "every_save"
    license: str | None = None
