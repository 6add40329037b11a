"""A source of texts tokenised, once: found in the cache, or made there, by one process for all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...core.text import LanguageTokenizer
from ...errors import UserError
from ..cache import cache_folder
from ..pairs.captions import LeftOut
from .source import EMPTY, UNANSWERED, Completion, Document, TextSource
from .tokenised import Tokenised, Writing, chunks

logger = logging.getLogger("transmamba.data")

# of the files: another, and all are made anew
_VERSION = 1
_CHARACTERS = 2_000_000  # that a tokenizer is given at once: it divides them among its threads
_KIND = "tokens"


def tokenised(source: TextSource, tokenizer: LanguageTokenizer, folder: str | None = None) -> Tokenised:
    """The source's documents as the tokenizer numbers them, each begun and ended as it says.

    folder: where they are kept; the user's cache if left out

    What is there is told by a hash of the files' sizes and times and of the tokenizer. An interrupted making
    leaves nothing that would be taken for whole; of several processes one makes them and the others wait.
    Raises UserError as the source and the tokenizer do, where nothing can be written, and for no documents.
    """
    place = cache_folder(_KIND) if folder is None else Path(os.path.expandvars(folder)).expanduser()
    known = json.dumps([_VERSION, source.stamp, tokenizer.identity, tokenizer.eos, tokenizer.prefix])
    path = place / hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    try:
        found = Tokenised.open(path) or _made(path, source, tokenizer)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{source.where}: its tokens cannot be kept in {place} ({reason}); write task.cache: FOLDER"
        ) from None
    left_out = LeftOut()
    for reason, first, count in found.about.left_out:
        left_out.add(reason, first, count)
    if not len(found):
        raise UserError(f"{source.where}: holds no documents" + (f": {left_out}" if left_out.total else ""))
    if left_out.total and os.environ.get("RANK", "0") == "0":
        logger.warning("%s: left out %d documents: %s", source.where, left_out.total, left_out)
    return found


def _made(path: Path, source: TextSource, tokenizer: LanguageTokenizer) -> Tokenised:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path) as alone:
        if (found := Tokenised.open(path)) is not None:
            return found
        left = path.parent.glob(f".{path.name}.*.partial") if alone else ()
        for torn in (path, *left):
            shutil.rmtree(torn, ignore_errors=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        partial.mkdir()
        try:
            _write(partial, source, tokenizer)
            # where there are no locks another may have been faster: then it has written the same
            with contextlib.suppress(OSError):
                partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    made = Tokenised.open(path)
    if made is None:
        raise OSError(None, "what was written is not whole")
    return made


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Waits until no other process makes the same. False where there are no locks: then all are let in."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        yield _locked(lock.fileno())


def _locked(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("waiting for another process, which tokenises the same")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without
        return False
    return True


def _write(folder: Path, source: TextSource, tokenizer: LanguageTokenizer) -> None:
    left_out, writing = LeftOut(), Writing(folder, tokenizer.vocabulary, source.answered)
    with contextlib.closing(writing), _progress(source.where) as show:
        for documents in chunks(source.documents(left_out), _length, _CHARACTERS):
            for ids, asked in numbered(documents, tokenizer):
                if ids is None:
                    left_out.add(UNANSWERED if source.answered else EMPTY, source.where)
                else:
                    writing.add(ids, asked)
            show(len(writing.bounds) - 1, writing.bounds[-1])
        writing.finish(left_out.entries())


def numbered(
    documents: list[Document], tokenizer: LanguageTokenizer
) -> Iterator[tuple[list[int] | None, list[bool] | None]]:
    """(tokens, which of them are answers) of documents of one kind: a text is begun and ended as the
    tokenizer says, a completion likewise, and a conversation is as its template has it, and ended where that
    does not. None for one of which nothing is left."""
    prefix, eos = list(tokenizer.prefix), tokenizer.eos
    completions = [each for each in documents if isinstance(each, Completion)]
    if completions:
        # together, and apart, as benchmarks do: what both begin with is the context
        wholes = tokenizer.encode([each.before + each.after for each in completions])
        contexts = tokenizer.encode([each.before for each in completions])
        for whole, context in zip(wholes, contexts, strict=True):
            known = [*(prefix or ([] if context else [eos])), *whole]
            first = len(known) - len(whole) + len(context)
            given = first < len(known)
            yield (known if given else None), ([n >= first for n in range(len(known))] if given else None)
        return
    if isinstance(documents[0], str):
        for ids in tokenizer.encode([text for text in documents if isinstance(text, str)]):
            yield ([*prefix, *ids, eos] if ids else None), None
        return
    for ids, asked in tokenizer.chat([turns for turns in documents if isinstance(turns, tuple)]):
        if not any(asked):
            yield None, None
            continue
        last = max(place for place, is_asked in enumerate(asked) if is_asked)
        ended = eos in ids[last:]
        yield (ids if ended else [*ids, eos]), (asked if ended else [*asked, True])


def _length(document: Document) -> int:
    if isinstance(document, str):
        return len(document)
    if isinstance(document, Completion):
        return len(document.before) + len(document.after)
    return sum(len(message.content) for message in document)


@contextlib.contextmanager
def _progress(where: str):  # type: ignore[no-untyped-def]
    """A line that goes along, where somebody looks: how many documents, and tokens, there are."""
    if os.environ.get("RANK", "0") != "0":
        yield lambda documents, tokens: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"tokenising {where}", total=None)

        def show(documents: int, tokens: int) -> None:
            said = f"tokenising {where}: {documents:,} documents, {tokens:,} tokens"
            bar.update(task, description=said)

        yield show
