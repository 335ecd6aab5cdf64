"""Fixtures of the whole suite: sound made on the spot, and real speech where it is mounted."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import stand_in_hub

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background of a shell: what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["OMP_NUM_THREADS"] = "1"  # of this process and those that it starts: models are tiny, and sums have one order
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a network
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture
def shared_data() -> Path:
    """Real speech and faulty files, which are not part of the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data of ../shared/data")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of a Hub, which this process and those that it starts take for the real one."""
    with stand_in_hub.running(tmp_path / "hub") as address:
        stand_in_hub.reach(address, tmp_path, monkeypatch)
        yield tmp_path / "hub"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def quick_runs():
    """Runs in this process draw an empty picture: drawing is most of the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wavtrain.training_run.draw_curves", lambda folder: Path(folder, "training_curves.png").touch())
        yield


def sound(seconds: float, seed: int = 0, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """Something like a voice: a gliding tone with overtones and a little noise, 16-bit, (samples,) or (samples, channels)."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = generator.uniform(90, 250)
    phase = 2 * np.pi * pitch * (time + 0.02 * np.sin(2 * np.pi * 3 * time))
    voice = sum(np.sin(k * phase) / k for k in range(1, 6)) + 0.05 * generator.standard_normal(len(time))
    samples = (voice / np.abs(voice).max() * 0.6 * 32767).astype(np.int16)
    return samples if channels == 1 else np.stack([samples] * channels, axis=1)


def write_folder(folder: Path, durations: list[float], rate: int = 16_000, ending: str = "flac") -> Path:
    """A bare folder of clips 000.flac, 001.flac, ... of the given durations."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seconds in enumerate(durations):
        soundfile.write(folder / f"{number:03d}.{ending}", sound(seconds, number, rate), rate)
    return folder


TINY_MODEL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": (16,) * 7,
    "num_codevectors_per_group": 8, "codevector_dim": 16, "proj_codevector_dim": 24, "num_negatives": 10,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.65}


def write_model(folder: Path, kind: str = "wav2vec2", **settings) -> Path:
    """A model directory without weights, of which 8 updates take a second or two."""
    from transformers import AutoConfig, Wav2Vec2FeatureExtractor

    AutoConfig.for_model(kind, **{**TINY_MODEL, **settings}).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder
