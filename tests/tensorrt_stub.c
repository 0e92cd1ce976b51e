/* The symbols that TensorRT's Python bindings need to be imported, so that a machine without TensorRT can look at them.
   None of them does anything: the test asks for names, and calls nothing. */
#define STUB(name) \
    void* name(void) \
    { \
        return 0; \
    }
STUB(createInferBuilder_INTERNAL)
STUB(createInferRefitter_INTERNAL)
STUB(createInferRuntime_INTERNAL)
STUB(createNvOnnxParserRefitter_INTERNAL)
STUB(createNvOnnxParser_INTERNAL)
STUB(getBuilderPluginRegistry)
STUB(getNvOnnxParserVersion)
STUB(getPluginRegistry)
STUB(initLibNvInferPlugins)
