// SPDX-License-Identifier: Apache-2.0
// Tiles of one kind of panels.

#include "tiles.hpp"

const experts::TileRow &experts::f32_tiles(int rows) { return tiles<F32>(rows); }
