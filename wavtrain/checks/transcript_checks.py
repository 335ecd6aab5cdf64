"""What concerns CTC alone: characters, labels against frames, voices and sentences that validation shares with training."""

from dataclasses import dataclass
from unicodedata import category

import numpy as np
import pyarrow.compute

from wavtrain.checks.findings import Checked, percent
from wavtrain.checks.speech_survey import counted, table_of
from wavtrain.planned_run import PlannedRun
from wavtrain.recognition.ctc_batches import CtcBatches
from wavtrain.recognition.transcribed_clips import labels_needed
from wavtrain.recognition.transcripts import TextRules, normalised
from wavtrain.recognition.vocabularies import Vocabulary
from wavtrain.speech.prepared_directory import PreparedSpeech

NUM_READ = 2_000  # transcripts of the sample
TIGHT = 0.7  # frames that labels need at least, blanks between equal ones among them
OFTEN, SPARSE = 0.02, 2.0  # clips; labels a second, where speech has ten and more
TOKENS_SHOWN = 100  # characters
MANY_LETTERS = 500


@dataclass(frozen=True)
class FineTuning:
    """The fields are flags of the same names."""

    freeze_finetune_updates: int
    validate_after_updates: int
    eval_steps: int | None
    saving_steps: int


def transcript_checks(run: PlannedRun, options: FineTuning) -> Checked:
    """Each finding names the flag that changes it."""
    found, settings = Checked(), run.speech.settings
    speech, held_out, total_steps = run.speech, run.held_out, run.total_steps
    tokens = " ".join(settings.vocabulary.tokens)
    found.facts["tokens"] = f"{len(settings.vocabulary.tokens)}: {tokens[:TOKENS_SHOWN]}{' ...' * (len(tokens) > TOKENS_SHOWN)}"
    for split, each in (("train", speech), *((("validation", held_out),) if held_out else ())):
        for line in each.survey.summary(split):
            found.note("transcripts", line.removeprefix("note: "))
    found.add(vocabulary_checks(settings.vocabulary, settings.rules))
    found.add(label_checks(speech))
    if options.freeze_finetune_updates >= total_steps:
        found.warn("frozen", f"--freeze_finetune_updates {options.freeze_finetune_updates}: the run has {total_steps} updates, "
                   "so the head alone is trained")
    if held_out is None:
        found.note("validation", "nothing is held out for validation, so the last model is kept, whatever its error rate")
        return found
    if options.validate_after_updates > total_steps or (options.eval_steps or options.saving_steps) > total_steps:
        found.note("validation", f"validation comes after the last of {total_steps} updates only, so no best one is found: "
                   "--eval_steps and --validate_after_updates")
    return found.add(shared_with_train(run.prepared)) and found


def vocabulary_checks(vocabulary: Vocabulary, rules: TextRules) -> Checked:
    """Tokens that nobody can hear."""
    found = Checked()
    if vocabulary.unit == "phones":
        return found
    letters = [token for i, token in enumerate(vocabulary.tokens) if i not in vocabulary.specials and i != vocabulary.delimiter]
    both = [each for each in letters if each != each.lower() and each.lower() in letters]
    if both and rules.text_case == "keep":
        found.note("case", f"{len(both)} letters are tokens in both cases ({' '.join(both[:5])} ...), which nobody hears: "
                   "--text_case lower")
    marks = [each for each in letters if each != "'" and all(category(char)[0] in "PS" for char in each)]
    if marks and not rules.remove_punctuation:
        found.note("punctuation", f"punctuation is learned as letters ({' '.join(marks[:10])}): --remove_punctuation, or "
                   "--chars_to_ignore for some of it")
    digits = [each for each in letters if each.isdigit()]
    if digits and rules.digits == "keep":
        found.note("digits", f"digits are learned as letters ({' '.join(digits)}), though 12 may be read as twelve or one two: "
                   "spell numbers out, or --digits reject")
    if len(letters) > MANY_LETTERS:
        found.note("letters", f"{len(letters):,} letters, many of them rare: is --text_column_name the transcripts'?")
    return found


def label_checks(speech: CtcBatches) -> Checked:
    """Labels against frames, in clips at equal distances; those that do not fit at all are left out already."""
    found, settings = Checked(), speech.settings
    rows = np.unique(np.linspace(0, len(speech.clips) - 1, NUM_READ).astype(int))
    texts = speech.clips.select_columns("text")[rows.tolist()]["text"]
    labels = [settings.vocabulary.encode(normalised(text, settings.rules)) for text in texts]
    recorded = (speech.num_samples[rows] * speech.slowest).astype(np.int64)
    filled = np.array([labels_needed(each) for each in labels]) / settings.frames_of(recorded)
    a_second = sum(map(len, labels)) / (recorded.sum() / 16_000)
    found.facts["labels"] = f"{a_second:.1f} a second, for {percent(float(np.median(filled)))} of the frames"
    found.numbers.update(labels_per_second=float(a_second), frames_with_labels=float(np.median(filled)))
    tight = float((filled > TIGHT).mean())
    if tight > OFTEN:
        found.note("labels", f"{percent(tight)} of the clips have labels for more than {percent(TIGHT)} of their frames, which "
                   "CTC learns badly: is the speech that fast, are the transcripts its own, does --add_adapter leave too few?")
    if a_second < SPARSE and settings.vocabulary.unit == "letters":
        found.note("labels", f"{a_second:.1f} letters a second is little for speech: is all of it transcribed, and is "
                   "--text_column_name right?")
    return found


def shared_with_train(prepared: PreparedSpeech) -> Checked:
    """Voices and sentences that are in training and in validation."""
    found = Checked()
    train, validation = (table_of(prepared, split) for split in ("train", "validation"))
    known, heard = (counted(table.column("speaker")) for table in (validation, train))
    if known and set(known) <= set(heard):
        found.note("known_voices", f"all speakers of validation ({len(known)}) are in train, so its error rates are of known "
                   "voices: --validation_split_names with others tells how new ones fare")
    texts = validation.column("text").drop_null()
    shared = pyarrow.compute.sum(pyarrow.compute.is_in(texts, value_set=train.column("text").drop_null())).as_py() or 0
    if shared > OFTEN * len(texts):
        found.note("known_sentences", f"{percent(shared / len(texts))} of validation's transcripts stand in train word for "
                   "word, so its error rates will be too good: --validation_split_names with others")
    return found
