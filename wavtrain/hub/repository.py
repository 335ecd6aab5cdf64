"""The Hub: a repository for the run, uploads in the background, one at a time. A failed upload never stops a run."""

import logging
import os
from concurrent.futures import Future

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from wavtrain import InputError

LEFT_OUT = [".run.lock", "checkpoints/*", "tensorboard/*", "*.part", "*.part/*", "training_text.txt", "rejected.jsonl"]

logger = logging.getLogger(__name__)


class Repository:
    """The repository on the Hub that an output directory is pushed to."""

    def __init__(self, output_dir: str, hub_model_id: str | None, token: str | None) -> None:
        self.output_dir, self.api = output_dir, HfApi(token=token)
        name = hub_model_id or os.path.basename(os.path.abspath(output_dir))
        try:
            self.id = self.api.create_repo(name, exist_ok=True).repo_id
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"--push_to_hub {name}: no repository there ({reason}); --hub_token or `hf auth login` says "
                             "who you are") from error
        self._upload: Future | None = None

    def push(self, message: str) -> None:
        """Begin to upload what is in the output directory, unless the last upload is still at work."""
        if self._upload is None or self._upload.done():
            self._report()
            self._upload = self.api.upload_folder(repo_id=self.id, folder_path=self.output_dir, commit_message=message,
                                                  ignore_patterns=LEFT_OUT, run_as_future=True)

    def finish(self, message: str) -> None:
        """Wait for the last upload, then upload what is there now."""
        self._report()
        self.push(message)
        self._report()

    def _report(self) -> None:
        if self._upload is not None and self._upload.exception() is not None:
            logger.warning("upload to %s failed: %s", self.id, " ".join(str(self._upload.exception()).split())[:300])
        self._upload = None


class NoRepository:
    """Without --push_to_hub."""

    def push(self, message: str) -> None:
        """Nothing."""

    def finish(self, message: str) -> None:
        """Nothing."""
