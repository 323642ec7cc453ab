"""Extracts fenced blocks of Markdown pages."""

import dataclasses
import re
import textwrap


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of shell commands: its section, its line in the page, its text."""

    page: str
    section: str
    line: int
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def shell_blocks(path, sections):
    """Returns the `sh` blocks of a page's sections, in order.

    Raises ValueError for a missing section, and for a fenced block of these sections without a
    language, which could be an untested step.
    """
    found, missing = [], set(sections)
    section, fence, lines = None, None, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if fence is None:
            if heading := re.fullmatch(r"#+ (.+)", line):
                section = heading[1]
                missing.discard(section)
            elif opened := re.fullmatch(r" *```(.*)", line):
                fence, lines, began = opened[1], [], number + 1
        elif line.strip() == "```":
            if section in sections:
                if not fence:
                    raise ValueError(f"{path.name}:{began}: a block without a language")
                if fence == "sh":
                    text = textwrap.dedent("\n".join(lines)) + "\n"
                    found.append(Block(path.name, section, began, text))
            fence = None
        else:
            lines.append(line)
    if missing:
        raise ValueError(f"{path.name} has no section {', '.join(sorted(missing))}")
    return found
