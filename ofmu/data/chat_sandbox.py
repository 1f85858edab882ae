"""Render a chat template in a process of its own, with little time and memory: ``python chat_sandbox.py < request``.

A chat template is a program of the model's author. It may loop for hours or fill the memory, and it cannot be stopped
inside this process. The environment is that of Transformers, and this file imports Jinja alone.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

CPU_SECONDS = 10
MEMORY_BYTES = 2**30


def main() -> None:
    """Read a request as JSON, and write the texts, or what the template raised, as JSON."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        template = _environment().from_string(request["template"])
        texts = [template.render(messages=messages, **request["variables"]) for messages in request["conversations"]]
        answer: dict[str, Any] = {"texts": texts}
    except MemoryError:
        answer = {"limit": True}
    except Exception as error:
        answer = {"error": " ".join(str(error).split())[:160] or type(error).__name__}
    json.dump(answer, sys.stdout)


def _environment() -> Any:
    # Imported here, after the path is set.
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """The tag ``{% generation %}`` around an assistant's text, which a prompt prints as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


if __name__ == "__main__":
    main()
