"""A place where nothing can be written is told before any work."""

import os
from pathlib import Path

import pytest

from uae.utils.outputs import check_out_file, check_out_folder


def test_places_that_can_be_written(tmp_path):
    (tmp_path / "old.json").write_text("{}")
    check_out_file(tmp_path / "old.json")
    check_out_file(tmp_path / "new" / "deep" / "x.json")
    check_out_folder(tmp_path)
    check_out_folder(tmp_path / "new")
    assert os.listdir(tmp_path) == ["old.json"]


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(ValueError, match="expected a file to write, got a folder"):
        check_out_file(tmp_path)


def test_a_device_is_not_replaced():
    with pytest.raises(
        ValueError, match="/dev/null: expected a file to write, this is no regular file"
    ):
        check_out_file(Path("/dev/null"))


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/deep"):
        with pytest.raises(ValueError, match=r"expected a folder to write to, .*/file is a file"):
            check_out_folder(tmp_path / place)
    with pytest.raises(ValueError, match=r"/file is a file"):
        check_out_file(tmp_path / "file" / "x.json")


def test_a_link_to_nothing_and_a_name_that_is_too_long(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a folder to write to"):
        check_out_folder(tmp_path / "link")
    with pytest.raises(ValueError, match="File name too long"):
        check_out_folder(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"expected a folder to write to, .* may not be written"):
        check_out_folder(tmp_path / "new")
    tmp_path.chmod(0o700)
