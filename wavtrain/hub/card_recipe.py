"""The part of a card that says how to do it again: the arguments that count, the commands."""

from typing import Any

from wavtrain.hub.card_text import hours, printable, shown, table
from wavtrain.hub.named_speech import without_path
from wavtrain.hub.repository import name_of
from wavtrain.run_options import CHANGES_NO_NUMBER

OF_A_SCHEDULE = {"tri_stage_ratios": "tri_stage", "lr_init_scale": "tri_stage", "lr_final_scale": "tri_stage",
                 "polynomial_power": "polynomial"}  # of no effect with another
COLUMNS = 2  # of flags beside each other
SCRIPTS = {True: "run_ctc_finetuning.py", False: "run_wav2vec2_pretraining_no_trainer.py"}  # whether it makes a recogniser


def recipe(arguments: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Every argument that changes what comes out; those left to the model's config with the value that they have there."""
    given = {name: config.get(name) if value is None else value for name, value in arguments.items()
             if name not in CHANGES_NO_NUMBER}
    schedule = given.get("lr_scheduler_type")
    without_effect = {name for name, kind in OF_A_SCHEDULE.items() if kind != schedule}
    without_effect |= {"num_train_epochs"} if given.get("max_train_steps") else set()
    return {name: value for name, value in given.items()
            if value is not None and value is not False and value != [] and name not in without_effect}


def recipe_lines(arguments: dict[str, Any], facts: dict[str, Any], config: dict[str, Any], last: dict[str, Any] | None,
                 where: str, is_recogniser: bool) -> list[str]:
    """`last` is the last record of the training; `where` the card is to lie."""
    launch = f"accelerate launch --num_processes {facts['num_processes']}" if facts["num_processes"] > 1 else "python"
    command = f"    {launch} {SCRIPTS[is_recogniser]} --config arguments.yaml --output_dir runs/{printable(name_of(where))}"
    settled = {name: facts[name] for name in ("mixed_precision", "uneven_clips") if name in arguments and name in facts}
    cells = [text for name, value in recipe({**arguments, **settled}, config).items()
             for text in (f"`--{name}`", shown(_word(value)))]
    cells += [""] * (-len(cells) % (2 * COLUMNS))
    rows = [cells[at : at + 2 * COLUMNS] for at in range(0, len(cells), 2 * COLUMNS)]
    goes_on = ["", "It goes on from its last update, wherever the same speech is (`--max_train_steps` asks for more):", "",
               f"{command} --resume_from_checkpoint {facts['repository']}"]
    return [*_done(facts, last), *table(("flag", "value") * COLUMNS, rows), "",
            "The command, with the arguments.yaml beside this card, which names corpora and models as its author did:", "",
            command, *(goes_on if facts["repository"] and arguments.get("hub_strategy") == "checkpoint" else []), "",
            f"Made with {', '.join(f'{name} {shown(number)}' for name, number in facts['versions'].items())}."]


def _done(facts: dict[str, Any], last: dict[str, Any] | None) -> list[str]:
    """How long it was trained."""
    if last is None:
        return []
    of_all = "" if last["step"] == facts["total_steps"] else f" of {facts['total_steps']:,}"
    an_update = 3600 * last["audio_hours"] / last["step"]
    return [f"{last['step']:,}{of_all} updates, {hours(an_update)} seconds of speech in each on average.", ""]


def _word(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return " ".join("yes" if each is True else without_path(str(each)) for each in values)
