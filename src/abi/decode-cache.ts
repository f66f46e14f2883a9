// The decode cache: one slot per physical page of code that has run, shared by all pCPUs.
//
//   slot ┌────────────┬────────────┬─────┬──────────────┬──────────────┬─────────┐
//        │ record 0   │ record 1   │  …  │ record 1023  │ end of page  │ content │   16 bytes each, one per instruction word
//        └────────────┴────────────┴─────┴──────────────┴──────────────┴─────────┘
//
// A record's handler is HANDLER_DECODE until the instruction is first reached. A decoder writes the operands first and
// the handler last, and touches no operand field that the instruction does not use; so a thread that runs a record
// while it is decoded anew sees the old instruction or the new one for the pairs that the architecture allows.

export const SLOT_RECORDS = 1025;
/** Padded, so that the same place of different pages falls into different cache sets. */
export const SLOT_BYTES = 16448;
/** In the padding, 64 bits: the number of the page's content (cpu/jit/page-contents.ts); 0: not known. */
export const SLOT_CONTENT = 16416;

/** Handlers with fixed numbers; the instruction table's follow. */
export const HANDLER_DECODE = 0;
export const HANDLER_END_OF_PAGE = 1;
/** Unallocated encodings. */
export const HANDLER_UNDEFINED = 2;
export const HANDLER_FIRST_ROW = 3;
/** From here on numbers are compiled regions': more than there are handlers, so that nobody needs the instruction table to tell. */
export const FIRST_REGION = 0x2000;
