// The paravirtual network card (io/netif.h, io/ring.h). Each queue has two rings of one page, each with 256 slots; a
// response is written into the place of a request that has been taken. Indices run free and wrap at 2^32.
//
//      0 ┌───────────┬───────────┬───────────┬───────────┐
//        │ req_prod  │ req_event │ rsp_prod  │ rsp_event │  the guest moves req_prod and rsp_event, the host the others
//     16 ├───────────┴───────────┴───────────┴───────────┤
//        │ not used                                      │
//     64 ├───────────────────────────────────────────────┤
//        │ 256 slots: 12 bytes (tx, what the guest       │
//        │ sends), 8 bytes (rx, what it receives)        │
//        └───────────────────────────────────────────────┘
//
// A frame takes one slot for each page that it lies in; where it needs segmentation, the slot after the first says how.
// The size in the first tx slot is that of the whole frame, in the others of their part.
//
//   tx   first │ [extra] │ part │ part …      rx   first │ [extra] │ part │ part …

import { struct, u16, u32, u8 } from './struct.ts';

export const NETIF_RING_SLOTS = 256;
/** Slots of data that a frame may take; Linux sends no more. */
export const NETIF_SLOTS_MAX = 18;

/** Flags of a tx request. */
export const NETTXF = { csum_blank: 1, data_validated: 2, more_data: 4, extra_info: 8 } as const;
/** Flags of an rx response. */
export const NETRXF = { data_validated: 1, csum_blank: 2, more_data: 4, extra_info: 8 } as const;
export const NETIF_RSP = { dropped: -2, error: -1, okay: 0, null: 1 } as const;
export const NETIF_EXTRA_TYPE = { gso: 1 } as const;
export const NETIF_EXTRA_FLAG_MORE = 1;
export const NETIF_GSO_TYPE = { tcpv4: 1, tcpv6: 2 } as const;

export const netifSring = struct('netif_sring', { req_prod: u32, req_event: u32, rsp_prod: u32, rsp_event: u32 },
  { padTo: 64 });

export const netifTxRequest = struct('netif_tx_request', { gref: u32, offset: u16, flags: u16, id: u16, size: u16 },
  { sizeBytes: 12 });
export const netifTxResponse = struct('netif_tx_response', { id: u16, status: u16 }, { sizeBytes: 4 });
export const netifRxRequest = struct('netif_rx_request', { id: u16, pad: u16, gref: u32 }, { sizeBytes: 8 });
export const netifRxResponse = struct('netif_rx_response', { id: u16, offset: u16, flags: u16, status: u16 },
  { sizeBytes: 8 });
export const netifExtraInfo = struct('netif_extra_info', {
  type: u8, flags: u8, gso_size: u16, gso_type: u8, gso_pad: u8, gso_features: u16,
}, { sizeBytes: 8 });
