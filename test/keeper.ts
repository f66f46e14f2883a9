// A guest that keeps books: each round it looks at both ends of every one of its pages, finds there what the last round
// has left, and leaves something new. A page that is lost, old, another's or half a page makes it power off.

import type { Assembler } from '../src/a64/test-assembler.ts';
import { DATA, FREE, fresh, hypercall, powerOff } from './bare-metal.ts';

const PAGE_BYTES = 4096;
const LAST_WORD = PAGE_BYTES - 8;
/** Spaces of XENMEM_add_to_physmap, and where the first page of each is to be. */
const SHARED_INFO = 0;
const SHARED_INFO_GFN = 0x6_0000;
const GRANT_TABLE = 1;
const GRANT_TABLE_GFN = 0x3_8000;
const DOMID_SELF = 0x7ff0;
const XENMEM_ADD_TO_PHYSMAP = 7;

/** For `bareMetalImage`. @param pages from FREE on, which are zero at first */
export function keeper(pages: number): (a: Assembler) => void {
  return a => {
    const [round, page, spoilt] = ['round', 'page', 'spoilt'].map(fresh) as [string, string, string];
    const mustBe = (found: number, wanted: number) => {
      a.emit('SUBS (register)', { sf: 1, Rm: wanted, Rn: found, Rd: 31 }).bCond('ne', spoilt);
    };
    // What it shares with the hypervisor lies where it can see it, as with Linux: then it is rolled back in place.
    for (const [space, gfn] of [[SHARED_INFO, SHARED_INFO_GFN], [GRANT_TABLE, GRANT_TABLE_GFN]] as const) {
      a.mov(19, DATA).mov(2, space * 2 ** 32 + DOMID_SELF).str(2, 19).str(31, 19, 8).mov(2, gfn).str(2, 19, 16);
      a.mov(0, XENMEM_ADD_TO_PHYSMAP).movReg(1, 19);
      hypercall(a, 'memory_op');
      a.cbnz(0, spoilt);
    }
    // x20: round; a page holds round * its address
    a.mov(20, 0).label(round).mov(21, FREE).mov(22, pages).label(page);
    a.madd(3, 20, 21, 31).ldr(1, 21).ldr(2, 21, LAST_WORD);
    mustBe(1, 3);
    mustBe(2, 3);
    a.addReg(3, 3, 21).str(3, 21).str(3, 21, LAST_WORD);
    a.add(21, 21, PAGE_BYTES - 1).add(21, 21, 1).subs(22, 22, 1).bCond('ne', page);
    a.add(20, 20, 1).b(round);
    a.label(spoilt);
    powerOff(a);
  };
}
/** Instructions that a round takes. */
export const keeperRound = (pages: number): number => 14 * pages;
