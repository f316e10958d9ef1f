"""The demo as tools of a language model, where the extra `mcp` is installed."""

import asyncio

import pytest

from .demo_checkpoints import save_demo_checkpoints
from .demo_server import running_demo

pytest.importorskip("mcp", reason='no MCP: pip install ".[mcp]"')


def test_tools_are_described_and_answer(tmp_path):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk(url: str):
        async with streamablehttp_client(f"{url}gradio_api/mcp/") as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return tools, await session.call_tool("models", {})

    with running_demo(save_demo_checkpoints(tmp_path), mcp_server=True) as (_, url):
        tools, answer = asyncio.run(talk(url))
    assert set(tools) == {"segment", "models", "teach"}
    properties = tools["segment"].inputSchema["properties"]
    assert all(properties[name].get("description") for name in ("class_names", "checkpoints", "window", "threshold"))
    assert "Segments a picture by class names" in tools["segment"].description
    assert "'open'" in answer.content[0].text.replace('"', "'") and not answer.isError
