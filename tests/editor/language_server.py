"""An editor, as far as its language server can tell: documents are opened, positions asked about."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from pathlib import Path
from typing import Any, BinaryIO

ANSWER_TIMEOUT_S = 30

Message = dict[str, Any]


class LanguageServer:
    """`yaml-language-server` over its standard input and output."""

    def __init__(self, program: Path, root: Path) -> None:
        self._process = subprocess.Popen(
            [str(program), "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin and self._process.stdout
        self._input = self._process.stdin
        self._arrived: queue.Queue[Message | None] = queue.Queue()
        self._reader = threading.Thread(target=self._receive, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._asked = 0
        self._diagnostics: dict[str, list[Message]] = {}
        capabilities = {
            "textDocument": {
                "completion": {"completionItem": {"snippetSupport": True}},
                "hover": {"contentFormat": ["plaintext"]},
            },
            "workspace": {"configuration": True},
        }
        self._request("initialize", processId=None, rootUri=root.as_uri(), capabilities=capabilities)
        self._notify("initialized")

    def close(self) -> None:
        """Ends the server."""
        self._request("shutdown")
        self._notify("exit")
        self._process.wait(ANSWER_TIMEOUT_S)
        self._reader.join(ANSWER_TIMEOUT_S)
        self._input.close()
        assert self._process.stdout
        self._process.stdout.close()

    def open(self, path: Path, text: str) -> str:
        """Opens a document, which need not be on the disk; returns its URI."""
        uri = path.as_uri()
        self._diagnostics.pop(uri, None)
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
        self._notify("textDocument/didOpen", textDocument=document)
        return uri

    def close_document(self, uri: str) -> None:
        self._notify("textDocument/didClose", textDocument={"uri": uri})

    def diagnostics(self, uri: str) -> list[Message]:
        """What the server finds wrong with an open document."""
        while uri not in self._diagnostics:
            self._take()
        return self._diagnostics[uri]

    def completions(self, uri: str, line: int, character: int) -> list[str]:
        """The labels offered at a position, which counts from 0."""
        found = self._at("textDocument/completion", uri, line, character)
        return [item["label"] for item in (found["items"] if isinstance(found, dict) else found or [])]

    def hover(self, uri: str, line: int, character: int) -> str:
        """What is said about a position."""
        found = self._at("textDocument/hover", uri, line, character)
        if not found:
            return ""
        contents = found["contents"]
        return contents if isinstance(contents, str) else str(contents["value"])

    def _at(self, method: str, uri: str, line: int, character: int) -> Any:
        return self._request(method, textDocument={"uri": uri}, position={"line": line, "character": character})

    def _request(self, method: str, **parameters: Any) -> Any:
        self._asked += 1
        number = self._asked
        self._send({"id": number, "method": method, "params": parameters})
        while (message := self._take()).get("id") != number or "method" in message:
            pass
        assert "error" not in message, message
        return message["result"]

    def _notify(self, method: str, **parameters: Any) -> None:
        self._send({"method": method, "params": parameters})

    def _take(self) -> Message:
        """The next message; questions of the server are answered, diagnostics kept."""
        message = self._arrived.get(timeout=ANSWER_TIMEOUT_S)
        if message is None:
            raise EOFError("the language server has ended")
        if message.get("method") == "workspace/configuration":
            # Nothing from a catalogue in the network: the modeline names the schema.
            settings = {"yaml": {"schemaStore": {"enable": False}, "validate": True, "hover": True, "completion": True}}
            wanted = [settings.get(item.get("section", ""), {}) for item in message["params"]["items"]]
            self._send({"id": message["id"], "result": wanted})
        elif "method" in message and "id" in message:
            self._send({"id": message["id"], "result": None})
        elif message.get("method") == "textDocument/publishDiagnostics":
            self._diagnostics[message["params"]["uri"]] = message["params"]["diagnostics"]
        return message

    def _send(self, message: Message) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._input.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._input.flush()

    def _receive(self, output: BinaryIO) -> None:
        while line := output.readline():
            size = int(line.partition(b":")[2])
            while output.readline().strip():
                pass
            self._arrived.put(json.loads(output.read(size)))
        self._arrived.put(None)
