# SPDX-License-Identifier: Apache-2.0
"""A server of the Model Context Protocol made with the official package, for the test beside it."""

import asyncio
import os
import sys

try:
    from mcp.server import MCPServer as Server
    from mcp.server.mcpserver import Context, Image
except ImportError:
    from mcp.server.fastmcp import Context, Image
    from mcp.server.fastmcp import FastMCP as Server

server = Server("sums")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def fail(why: str) -> str:
    """Fails."""
    raise ValueError(why)


@server.tool()
def picture() -> Image:
    """Gives an image."""
    return Image(data=b"\x89PNG" + bytes(96), format="png")


@server.tool()
def environment() -> list[str]:
    """Gives several texts."""
    return [os.environ.get("GREETING", "none"), os.getcwd()]


@server.tool()
async def slow(ctx: Context) -> str:
    """Tells how far it is."""
    await ctx.report_progress(1, 2, "half way")
    await asyncio.sleep(0.05)
    return "done"


@server.tool()
def die() -> str:
    """Ends the server."""
    print("goodbye", file=sys.stderr, flush=True)
    os._exit(7)


if __name__ == "__main__":
    server.run(transport="stdio")
