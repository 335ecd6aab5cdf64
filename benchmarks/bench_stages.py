"""Where the time and memory of a pretraining step go, stage by stage, here and in transformers' model.

    python benchmarks/bench_stages.py                                      # BASE, 4 clips of 12 s, fp32
    python benchmarks/bench_stages.py --norm group --clips 8 --seconds 15 --mixed_precision bf16

Each stage is run alone, forward and backward, on what the stage before would give it: the convolutions; the transformer (the
same code on both sides); quantizer, negatives, similarities and loss; gradient norm and optimizer. The memory is the most a
stage holds at a time beside its inputs and weights. The suite's script keeps glibc's memory on a CPU, so its side does here.
Not measured on a GPU yet.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import side_by_side
from side_by_side import ROOT, SAMPLING_RATE, Measure, Round

STAGES = ("convolutions", "transformer", "quantizer to loss", "optimizer")
TARGETS = {"quantizer to loss, s": 0.25, "quantizer to loss, MB": 0.15}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", type=Path, default=ROOT / "configs/models/wav2vec2-base")
    parser.add_argument("--norm", choices=("layer", "group"), default="layer")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each clip (%(default)s)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no")
    side_by_side.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.side:
        return side_by_side.serve(Stages(args).measure)
    results = side_by_side.in_turn(("suite", "peer"), args.rounds)
    measures = [Measure(name, name, 3 if name.endswith("s") else 0, TARGETS.get(name), False)
                for stage in STAGES for name in (f"{stage}, s", f"{stage}, MB")] + [Measure("step, s", "step, s", 2)]
    side_by_side.report(side_by_side.compared(results, measures), ["", "stage", "suite", "peer", "suite/peer", "target"], args,
                        results)


class Stages:
    """One side's, with its inputs."""

    def __init__(self, args: argparse.Namespace) -> None:
        import numpy as np
        import torch
        from transformers import AutoConfig, Wav2Vec2ForPreTraining

        sys.path.insert(0, str(ROOT))
        from wavtrain.engine import keep_freed_memory
        from wavtrain.masking import masked_places, span_mask
        from wavtrain.models.contrastive import Wav2Vec2Pretraining

        self.args, self.device = args, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if args.side == "suite" and self.device.type == "cpu":
            keep_freed_memory()
        config = AutoConfig.from_pretrained(args.model_name_or_path)
        config.mask_time_prob, config.layerdrop = 0.65, 0.0
        if args.norm == "layer":
            config.feat_extract_norm, config.do_stable_layer_norm, config.conv_bias = "layer", True, True
        torch.manual_seed(0)
        self.model = (Wav2Vec2Pretraining if args.side == "suite" else Wav2Vec2ForPreTraining)(config).to(self.device).train()
        self.waves = torch.randn(args.clips, round(args.seconds * SAMPLING_RATE), device=self.device)
        frames = int(self.model._get_feat_extract_output_lengths(self.waves.shape[1]))
        mask = span_mask(np.full(args.clips, frames), 0.65, config.mask_time_length, 2, np.random.default_rng(0))
        self.mask = torch.from_numpy(mask).to(self.device)
        self.places, self.counts = (torch.from_numpy(each).to(self.device) for each in masked_places(mask))
        self.features = torch.randn(args.clips, frames, config.conv_dim[-1], device=self.device, requires_grad=True)
        self.hidden = torch.randn(args.clips, frames, config.hidden_size, device=self.device, requires_grad=True)
        self.normalised = torch.randn_like(self.features).requires_grad_()
        self.megabytes: dict[str, float] = {}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-9, fused=True if args.side == "suite" else None)

    def measure(self) -> Round:
        """Seconds and megabytes of every stage, and their sums."""
        found: Round = {}
        work = {"convolutions": self.convolutions, "transformer": self.transformer, "optimizer": self.optimize,
                "quantizer to loss": self.to_the_loss if self.args.side == "suite" else self.to_the_loss_in_transformers}
        for stage in STAGES:
            side_by_side.wait_for(self.device)
            start = time.perf_counter()
            work[stage]()
            side_by_side.wait_for(self.device)
            found[f"{stage}, s"] = time.perf_counter() - start
            if stage not in self.megabytes:  # once: profiling takes long, and it is always the same
                self.megabytes[stage] = side_by_side.megabytes_of(work[stage], self.device)
            found[f"{stage}, MB"] = self.megabytes[stage]
        found["step, s"] = sum(found[f"{stage}, s"] for stage in STAGES)
        return found

    def autocast(self) -> Any:
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.mixed_precision == "bf16")

    def convolutions(self) -> None:
        """Samples -> features."""
        with self.autocast():
            features = self.model.wav2vec2.feature_extractor(self.waves)
        features.backward(features.detach())

    def transformer(self) -> None:
        """Features -> hidden."""
        with self.autocast():
            hidden, _ = self.model.wav2vec2.feature_projection(self.features)
            hidden = self.model.wav2vec2.encoder(hidden).last_hidden_state
        hidden.backward(hidden.detach())

    def to_the_loss(self) -> None:
        """Features and hidden -> loss, for masked frames."""
        import torch

        from wavtrain.models.contrastive import at_places

        with self.autocast():
            masked = (at_places(each, self.places) for each in (self.hidden, self.normalised))
            loss = self.model.loss_of(*masked, self.counts, torch.zeros((), device=self.device), 2.0, None)["loss"]
        loss.backward()

    def to_the_loss_in_transformers(self) -> None:
        """The same for all frames; the negatives come from the loader and are not counted."""
        import torch
        from example_way import masks_and_negatives
        from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2BaseModelOutput

        if not hasattr(self, "drawn"):
            self.drawn = {name: each.to(self.device) for name, each in
                          masks_and_negatives(self.model, tuple(self.mask.shape)).items()}
        encoder = self.model.wav2vec2
        self.model.wav2vec2 = _answering(Wav2Vec2BaseModelOutput(self.hidden, self.normalised))
        with self.autocast():
            loss = self.model(torch.zeros(1), **self.drawn).loss
        self.model.wav2vec2 = encoder
        loss.backward()

    def optimize(self) -> None:
        """Gradient norm and update; the example scales gradients and takes their norm one parameter at a time."""
        import torch

        gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
        if self.args.side == "suite":
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), torch.inf)
        else:
            for gradient in gradients:
                gradient.mul_(1.0)
            sum(gradient.norm(2).item() ** 2 for gradient in gradients)
        self.optimizer.step()


def _answering(output: Any) -> Callable[..., Any]:
    """A module that has the answer."""
    import torch

    class Given(torch.nn.Module):
        def forward(self, *inputs: Any, **others: Any) -> Any:
            return output

    return Given()


if __name__ == "__main__":
    main()
