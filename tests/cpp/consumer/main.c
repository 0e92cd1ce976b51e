#include <edge_cl/edge_cl.h>
#include <stdio.h>

int main(void) {
    edge_cl_classifier* classifier = NULL;
    const int code = edge_cl_open("/nowhere", NULL, &classifier);
    printf("edge-cl %s: %s\n", edge_cl_version(), edge_cl_last_error());
    return code == EDGE_CL_NO_BUNDLE ? 0 : 1;
}
