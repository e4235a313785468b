/* shmcow: the protocol's functions one by one: each answer, each bound on both sides, each failure, the order of steps.
 *
 *     unit            exit 0: all is as it should be
 */
#include "unit.h"

#include "unit_format.h"
#include "unit_read.h"
#include "unit_write.h"

int main(void)
{
    begin();
    test_format();
    test_reading();
    test_writing();
    test_feed();
    printf("unit: %d failures\n", failures);
    return failures != 0;
}
