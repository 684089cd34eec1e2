"""The environment of Ray's processes, and so of every workload: built from the names below, never by leaving names out.

The shell that starts a controller holds what is nobody's business on the cluster: the home and its tokens, keys of
clouds and hubs. A variable that nobody has thought of stays behind; the operator adds one by its name, with
`llmsched up --env NAME`. What belongs to one workload comes from its spec and from secrets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llmsched.errors import SpecError
from llmsched.executors.ray_user import RayUser, closed

NAMES = frozenset(
    (
        *("HOME", "LOGNAME", "PATH", "SHELL", "USER"),
        *("LANG", "LANGUAGE", "TZ"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONHASHSEED", "LD_LIBRARY_PATH"),
        *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_TRUSTED_HOST", "PIP_CERT"),
        *("PIP_CONFIG_FILE", "PIP_CACHE_DIR", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE"),
        *("TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "XDG_CACHE_HOME", "TORCH_HOME", "LLMSCHED_CACHE"),
        *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_EC2_METADATA_DISABLED"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES"),
        *("NVIDIA_DRIVER_CAPABILITIES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
    )
)
PREFIXES = ("LC_", "NCCL_", "GLOO_", "UCX_", "OMP_", "MKL_", "OPENBLAS_")
# How to reach a Ray that somebody else has started: for the bridge alone.
CONNECTION = frozenset(
    (
        *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"),
        *("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"),
    )
)
_FILES = (  # those that name a file or a folder
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "TORCH_HOME", "LLMSCHED_CACHE"),
    *("PIP_CONFIG_FILE", "PIP_CACHE_DIR", "PIP_CERT"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"),
)
_OURS = ("LLMSCHED_", "RAY_")  # what we set ourselves cannot be handed on by its name


class Built(NamedTuple):
    variables: dict[str, str]
    left_out: tuple[str, ...] = ()  # names of files and folders that its user cannot reach


def build(given: Mapping[str, str], user: RayUser | None = None, also: Sequence[str] = ()) -> Built:
    """What of `given` Ray's processes get; `also` are names that the operator adds. Raises SpecError.

    `user` is whom they run as, None: the same user. A path that `user` cannot reach is left out.
    """
    kept = {name: text for name, text in given.items() if name in NAMES or name.startswith(PREFIXES)}
    for name in also:
        if name.startswith(_OURS):
            raise SpecError(f"{name} cannot be handed on: the names LLMSCHED_* and RAY_* are set by llmsched.")
        if name not in given:
            raise SpecError(f"{name} is not set here, so it cannot be handed on.", hint=f"export {name}=...")
        kept[name] = given[name]
    if user is None:
        return Built(kept)
    left_out = sorted(name for name in _FILES if name in kept and not _reaches(user, kept[name]))
    for name in left_out:
        del kept[name]
    kept.pop("SHELL", None)
    kept |= {"HOME": str(user.home), "USER": user.name, "LOGNAME": user.name}
    if "LLMSCHED_CACHE" in given:  # a cache is wanted that outlives the storage; which one is no matter
        kept.setdefault("LLMSCHED_CACHE", str(user.home / ".cache" / "llmsched"))
    return Built(kept, tuple(name for name in left_out if name != "LLMSCHED_CACHE"))


def connection(given: Mapping[str, str]) -> dict[str, str]:
    return {name: given[name] for name in CONNECTION if name in given}


def _reaches(user: RayUser, text: str) -> bool:
    """It is there for them to pass, or they may make it."""
    path = Path(text).expanduser().absolute()
    if path.exists():
        return not closed(user, [path / "any" if path.is_dir() else path])
    above = next(one for one in path.parents if one.exists())
    return user.may_write(above) and not closed(user, [above / "any"])
