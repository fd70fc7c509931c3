"""What a person sees of a terminal: the lines that a stream of characters leaves on it."""

import re

CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|\x1b")


class Screen:
    """Lines of `columns` characters, as many as were printed; knows what rich and we send.

    Attributes:
        lines: from the first one printed; the cursor is in `row`.
    """

    def __init__(self, columns: int = 80):
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0

    def feed(self, stream: str) -> None:
        """Take characters; a control sequence must not be cut in two."""
        for arguments, command, line_end, text in CONTROL.findall(stream):
            if line_end == "\r":
                self.column = 0
            elif line_end == "\n":
                self._next_line()
            elif command == "A":
                self.row = max(0, self.row - int(arguments or 1))
            elif command == "K" and arguments == "2":
                self.lines[self.row] = ""
            elif command == "K":
                self.lines[self.row] = self.lines[self.row][: self.column]
            for character in text:
                self._put(character)

    def _put(self, character: str) -> None:
        if self.column == self.columns:
            self._next_line()
            self.column = 0
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    def _next_line(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")
