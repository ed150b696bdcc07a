from __future__ import annotations

from pathlib import Path

import pytest

from des.errors import SettingsError
from des.settings import Settings
from des.storage.opening import open_storage, resolve_target


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "base_dir"),
        [
            ("store", Path("store")),
            ("/data/des store", Path("/data/des store")),
            ("./s3:/bucket", Path("./s3:/bucket")),
            (".", Path()),
            (Path("/data/ünïcödé"), Path("/data/ünïcödé")),
        ],
    )
    def test_a_directory(self, target: str | Path, base_dir: Path) -> None:
        settings = resolve_target(target)
        assert (settings.backend, settings.base_dir) == ("local", base_dir)

    @pytest.mark.parametrize(
        ("target", "bucket", "prefix"),
        [
            ("s3://bucket", "bucket", ""),
            ("s3://bucket/", "bucket", ""),
            ("s3://bucket/prefix", "bucket", "prefix"),
            ("s3://bucket/a/b/", "bucket", "a/b"),
            ("s3://bucket//a/b//", "bucket", "a/b"),
            ("s3://my.bucket-1/with space", "my.bucket-1", "with space"),
        ],
    )
    def test_an_address(self, target: str, bucket: str, prefix: str) -> None:
        settings = resolve_target(target)
        assert (settings.backend, settings.s3_bucket, settings.s3_prefix) == ("s3", bucket, prefix)

    @pytest.mark.parametrize(
        "target",
        [
            "https://bucket/prefix",
            "s3://",
            "s3:///prefix",
            "s3://bucket/a?b",
            "s3://bucket/a#b",
            "file:///data",
            "gs://bucket",
        ],
    )
    def test_what_is_no_store(self, target: str) -> None:
        with pytest.raises(SettingsError, match=r"is no store; give a directory or s3://bucket/prefix"):
            resolve_target(target)

    def test_nothing_is_no_store(self) -> None:
        with pytest.raises(SettingsError, match="address is empty"):
            resolve_target("")

    @pytest.mark.parametrize(
        "text", ["s3://name:secret@bucket/x", "s3://secret@bucket?x", "ftp://n:secret@h/x", "s3://[secret@"]
    )
    def test_credentials_in_an_address_are_refused_and_not_repeated(self, text: str) -> None:
        with pytest.raises(SettingsError) as caught:
            resolve_target(text)
        assert "secret" not in str(caught.value)

    def test_settings_are_taken_as_they_are(self) -> None:
        settings = Settings(base_dir=Path("x"))
        assert resolve_target(settings) is settings
        assert resolve_target(None, settings) is settings

    def test_the_environment_is_read_at_the_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DES_BASE_DIR", "/from/the/environment")
        monkeypatch.setenv("DES_S3_REGION", "eu-north-1")
        assert resolve_target(None).base_dir == Path("/from/the/environment")
        assert resolve_target("/elsewhere").base_dir == Path("/elsewhere")
        assert resolve_target("s3://bucket").s3_region == "eu-north-1"

    def test_a_target_outranks_the_place_in_the_settings_and_keeps_the_rest(self) -> None:
        settings = Settings(
            backend="s3", s3_bucket="other", s3_prefix="old", s3_endpoint_url="http://here", index_ttl=3
        )
        resolved = resolve_target("s3://bucket", settings)
        assert (resolved.s3_bucket, resolved.s3_prefix) == ("bucket", "")
        assert (resolved.s3_endpoint_url, resolved.index_ttl) == ("http://here", 3)
        local = resolve_target("here", settings)
        assert (local.backend, local.base_dir, local.index_ttl) == ("local", Path("here"), 3)


class TestOpening:
    async def test_a_directory_that_is_not_there_yet(self, tmp_path: Path) -> None:
        storage = await open_storage(Settings(base_dir=tmp_path / "later"))
        assert (storage.backend, storage.address) == ("local", str(tmp_path / "later"))
        assert (await storage.list_level("")).objects == ()
        await storage.aclose()
        assert not (tmp_path / "later").exists(), "reading makes nothing"
