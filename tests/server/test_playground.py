"""The page is served whole, asks for nothing elsewhere, and speaks of fields that the API has."""

import re

from flashdraft.llm import LLM
from server_case import Running, serving


def test_the_page_is_one_file_without_outside_assets(running: Running) -> None:
    page = running.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"https?://|@import|(?:src|href)=\"(?!data:)", page.text)
    ids = set(re.findall(r'\bid="([\w-]+)"', page.text))
    assert set(re.findall(r'\$\("([\w-]+)"\)', page.text)) <= ids


def test_what_the_page_asks_for_is_answered(running: Running, llm: LLM) -> None:
    assert running.get("/v1/models").json()["data"][0]["block_size"] == llm.max_block_size
    messages = [{"role": "user", "content": "hi"}]
    flags = {"stream": True, "token_origins": True, "return_meta_info": True, "seed": 3}
    text = running.post("/v1/chat/completions", messages=messages, max_tokens=9, block_size=8, **flags).text
    for name in ("token_texts", "token_origins", "num_drafted", "num_accepted", "spec_accept_length"):
        assert f'"{name}"' in text


def test_the_page_is_open_where_keys_are_asked(llm: LLM) -> None:
    with serving(llm, api_keys=("key",)) as locked:
        assert locked.get("/").status_code == 200
