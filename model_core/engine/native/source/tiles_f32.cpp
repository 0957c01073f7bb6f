// SPDX-License-Identifier: Apache-2.0
// Tiles of one kind of panels.

#include "short.hpp"

const experts::TileRow &experts::f32_tiles(int rows) { return tiles<F32>(rows); }

const experts::ShortTileRow &experts::f32_short_tiles(int rows, bool keep) { return short_tiles<F32>(rows, keep); }
