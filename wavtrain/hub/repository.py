"""A repository on the Hub: what of a run lies in it, whether it can be pushed to, and which of its faults will pass."""

import fnmatch
import logging
import os
import re
from collections.abc import Iterator

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from wavtrain import InputError

PUSHED = ("*.safetensors", "*.json", "README.md", "arguments.yaml", "metrics.jsonl", "training_curves.png")
NOT_PUSHED = ("scores.json",)  # of a decoding into the same folder: it quotes transcripts
LAST_CHECKPOINT = "last-checkpoint"  # as transformers' Trainer calls it
OF_THE_HUB = (OSError, ValueError, RuntimeError, HfHubHTTPError.__bases__[0])  # the last: the HTTP client's own
PASSING = (408, 409, 412, 423, 425, 429)  # of the codes from 400 to 499
NEVER_BETTER = (HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled)
SILENCE = 120.0  # seconds without a byte after which a connection is taken for dead; the library would wait for ever

logger = logging.getLogger(__name__)


class Repository:
    """One to push to. `kind` is model or dataset; `flag` says in refusals what is wrong."""

    def __init__(self, name: str, kind: str, token: str | None, is_private: bool) -> None:
        refuse_bad_token(token)
        self.name, self.kind, self.token, self.is_private = name, kind, token, is_private

    def made(self) -> str:
        """The repository is there, or is made; its full name."""
        return patient_api(self.token).create_repo(self.name, repo_type=self.kind, private=self.is_private or None,
                                                   exist_ok=True).repo_id

    def refuse_if_closed(self, makes: bool = True, tells: bool = True) -> None:
        """Before the work: what cannot get better is refused, and a network that is gone, which may be back when it is
        needed, is told. Without `makes` the repository is looked at alone."""
        try:
            if makes:
                self.name = self.made()
                self._is_there()
            else:
                self._refuse_if_not_to_be_made()
        except OF_THE_HUB as error:
            fault = in_one_line(error, self.token)
            if is_final(error):
                raise InputError(f"--push_to_hub {self.name}: cannot be pushed to ({fault}); --hub_token or `hf auth login` "
                                 "says who you are") from error
            if tells:
                logger.warning("--push_to_hub %s: the Hub cannot be reached now (%s); it is tried again when there is "
                               "something to push", self.name, fault)

    def _is_there(self) -> bool:
        """Whether it is; an error where it may not be written to."""
        try:
            patient_api(self.token).auth_check(self.name, repo_type=self.kind, write=True)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
            return False
        return True

    def _refuse_if_not_to_be_made(self) -> None:
        me = patient_api(self.token).whoami()
        self.name = self.name if "/" in self.name else f"{me['name']}/{self.name}"
        if self._is_there():
            return
        if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise InputError(f"--push_to_hub {self.name}: is not there, and a token that may only read cannot make it: give "
                             "one that may write")
        owner = self.name.partition("/")[0]
        if owner not in (me["name"], *(each["name"] for each in me.get("orgs", ()))):
            raise InputError(f"--push_to_hub {self.name}: is not there, and {me['name']} can make no repository of {owner}: "
                             "name one of your own")


def patient_api(token: str | None) -> HfApi:
    """Its patience with a silent connection has an end."""
    get_session().timeout = SILENCE
    return HfApi(token=token)


def refuse_bad_token(token: str | None) -> None:
    """The HTTP client would print it."""
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise InputError("--hub_token: holds spaces or letters that no token has: copy it anew")


def is_pushed(name: str) -> bool:
    """Whether a file of an output directory is for the repository: its folders are not, nor what quotes the corpus."""
    return name not in NOT_PUSHED and any(fnmatch.fnmatchcase(name, pattern) for pattern in PUSHED)


def name_of(folder: str) -> str:
    """The repository that is meant if none is named."""
    return os.path.basename(os.path.abspath(folder))


def is_hub_id(name: str) -> bool:
    """What looks like one, and is no path here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not os.path.exists(name)


def is_final(error: BaseException) -> bool:
    """Whether it will be the same at the next try."""
    codes = [each.response.status_code for each in _chain(error) if getattr(each, "response", None) is not None]
    return isinstance(error, NEVER_BETTER) or any(400 <= code < 500 and code not in PASSING for code in codes)


def in_one_line(error: BaseException, token: str | None) -> str:
    """What the Hub said, or else the deepest reason; without what is secret, or what a terminal would obey."""
    chain = list(_chain(error))
    told = next((each for each in chain if isinstance(each, HfHubHTTPError)), chain[-1])
    text = " ".join(re.sub(r"For more information check: \S+", "", str(told)).split()) or type(told).__name__
    text = "".join(c for c in text if c.isprintable())
    return (text.replace(token, "...") if token else text)[:300]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
