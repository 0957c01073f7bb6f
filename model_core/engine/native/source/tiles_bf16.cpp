// SPDX-License-Identifier: Apache-2.0
// Tiles of one kind of panels.

#include "tiles.hpp"

const experts::TileRow &experts::bf16_tiles(int rows) { return tiles<BF16>(rows); }
