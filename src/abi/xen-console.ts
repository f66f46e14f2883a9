// The paravirtual console (io/console.h): one page that guest and host share, a ring of bytes for each direction.
// Indices run free and wrap at 2^32; the byte of index i is at i modulo the ring's size.
//
//      0 ┌──────────────────────┐
//        │ in           1024 B  │ host → guest
//   1024 ├──────────────────────┤
//        │ out          2048 B  │ guest → host
//   3072 ├──────────────────────┤
//        │ in_cons    in_prod   │ the guest moves in_cons and out_prod, the host in_prod and out_cons
//        │ out_cons   out_prod  │
//   3088 └──────────────────────┘

import { array, struct, u32, u8 } from './struct.ts';

export const XENCONS_IN_BYTES = 1024;
export const XENCONS_OUT_BYTES = 2048;

export const XENCONS_INTERFACE = struct('xencons_interface', {
  in: array(u8, XENCONS_IN_BYTES),
  out: array(u8, XENCONS_OUT_BYTES),
  in_cons: u32,
  in_prod: u32,
  out_cons: u32,
  out_prod: u32,
}, { sizeBytes: 3088 });
