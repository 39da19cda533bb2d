"""The files of the TPU compiler, in miniature: regions, loops and estimates are read from them."""

import pytest

from jattn.benchmarks.tpu import cycles, schedule

TABLE = """\
== CAPACITIES:
MXU, VALU
    2     4
== UTILIZATION:
0 0
0 1
2 4
1 2
0 0
1 0
0 0
2 0
0 0
"""
BUNDLES = """\
LB: loop body

     0   :  { %s0 = smov 0 }
   0x1 LB: > { %v1 = vadd }
   0x2 LB: >> { %v2 = vmatmul } /* Start region 2 */
   0x3   : >> { %v3 = vmatmul  ;;  %4 = sbr.rel (%p0) target = $region2 }
   0x4   : > { %v5 = vadd
hlo: a comment on a line of its own
 */ }
   0x5 LB: >> { %v6 = vmatmul  ;;  %7 = sbr.rel (%p1) target = $region5 }
   0x6   : > { %v8 = vadd }
   0x7   : > { %v9 = vmatmul }
   0x8   :  {} /* End region 1 */
"""


def test_hot_regions_and_the_hot_loop():
    found = schedule.parse(TABLE, BUNDLES)
    assert found.bundles == 9
    assert [(region.bundles, region.depth) for region in found.hot] == [(2, 2), (1, 2), (2, 1)]
    assert found.hot[0].fill == {"MXU": 3 / 4, "VALU": 6 / 8}
    assert found.hot[0].loop != found.hot[1].loop
    assert [region.bundles for region in found.body] == [2]


def test_a_grid_alone_is_a_loop():
    """Splash has no loop inside of a grid step."""
    found = schedule.parse(TABLE, BUNDLES.replace(">> {", "> {"))
    assert [region.bundles for region in found.body] == [2, 1, 2]


def test_files_are_found_by_the_name_of_the_kernel(tmp_path):
    for kernel, table in (("jattn_forward.1", TABLE), ("copy.3", TABLE.replace("2 4\n1 2", "0 4\n0 2"))):
        (tmp_path / f"17-{kernel}-00-final_hlo-static-per-bundle-utilization.txt").write_text(table, encoding="utf-8")
        (tmp_path / f"17-{kernel}-01-schedule-analysis_final_bundles.txt").write_text("other", encoding="utf-8")
        (tmp_path / f"17-{kernel}-02-final_bundles.txt").write_text(BUNDLES, encoding="utf-8")
    found = schedule.read(tmp_path)
    assert {name: len(each.hot) for name, each in found.items()} == {"jattn_forward": 3, "copy": 2}


@pytest.mark.parametrize(
    "name", ["kernel.1_TPU v6 lite_static_llo_profile.textproto", "kernel_static_llo_profile.textproto"]
)
def test_estimates_are_found_by_the_name_of_the_kernel(tmp_path, name):
    """Compilers differ in the name of the file."""
    (tmp_path / name).write_text('hlo_op_name: "kernel.1"\nestimated_cycles: 42\n', encoding="utf-8")
    assert cycles.read(tmp_path) == {"kernel": 42}


def test_growth_needs_equal_steps():
    with pytest.raises(ValueError, match="three equally spaced"):
        cycles.Growth.of({2: 1, 3: 1, 6: 1})
