"""The sections of ``docs/troubleshooting.md``, run where their files are.

Run as a script, it writes what tpack prints now into the page.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path

from commands import run
from situations import SITUATIONS

PAGE = Path(__file__).parent.parent / "docs" / "troubleshooting.md"
TABLE, *SECTIONS = re.split(r"^(?=### )", PAGE.read_text(), flags=re.MULTILINE)
BLOCK = re.compile(r"^```(console|python) situation\n(.*?)^```", re.DOTALL | re.MULTILINE)


def title(section: str) -> str:
    """The heading of a section."""
    return section.partition("\n")[0].removeprefix("### ")


def replay(section: str) -> str:
    """Run a section in the current folder; return it with what tpack prints now."""
    code = 0

    def answer(command: str) -> str:
        nonlocal code
        if command == "echo $?":
            return f"{code}\n"
        code, output = run(command.split()[1:])
        return output

    def block(match: re.Match[str]) -> str:
        language, text = match.groups()
        if language == "console":
            commands = re.findall(r"^\$ (.*)\n", text, re.MULTILINE)
            text = "".join(f"$ {command}\n{answer(command)}" for command in commands)
        else:
            exec(compile(text, title(section), "exec"), {})
        return f"```{language} situation\n{text}```"

    words = {word for _, text in BLOCK.findall(section) for word in re.split(r'[\s"]+', text)}
    for name in words & SITUATIONS.keys():
        SITUATIONS[name](Path(name))
    return BLOCK.sub(block, section)


def main() -> None:
    """Write the page anew."""
    text = TABLE
    for section in SECTIONS:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            text += replay(section)
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
